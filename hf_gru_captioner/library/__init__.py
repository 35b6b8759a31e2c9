"""Captions where a photo library keeps them: a file of all of them, a text beside each photo, or its metadata."""
