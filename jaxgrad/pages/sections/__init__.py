"""A section for each kind of file; a file's schema picks it, in the table of `pages.report`."""
