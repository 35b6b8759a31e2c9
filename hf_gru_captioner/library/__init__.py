"""Storage of captions for photo libraries: a single file, a text file beside each photo, or the photo's metadata."""
