"""transferapp: a folder of images in, a measured, explained and served image classifier out."""
