"""The studio: everything a model can do, in a browser.  A file a page; `site` puts them together.

bench     what pages share: models, jobs on their way, and the folder of what was made
views     results as HTML
web/      the look, and the components of our own: a canvas for words and masks, a film
"""
