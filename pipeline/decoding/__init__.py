"""From the bytes of image files to prepared images, in worker processes or on a GPU."""
