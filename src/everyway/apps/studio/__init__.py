"""The studio: everything a model can do, in a browser.  A file a page; `site` puts them together.

bench     what pages share: models, jobs on their way, and the folder of what was made
parts     what pages are made of, and a run as it is shown
kinds     what people call what is made
views     results as HTML
web/      the look, and the components of our own: a canvas for words and masks, a film
"""
