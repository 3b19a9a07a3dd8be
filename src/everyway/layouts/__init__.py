"""Published files: how each kind of file names the tensors of a part, and models out of them."""
