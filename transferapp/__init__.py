"""transferapp: a folder of pictures in, a measured, explained and served image classifier out."""
