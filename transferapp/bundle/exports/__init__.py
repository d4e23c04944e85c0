"""Exports of a bundle to formats that run without this package.

`formats` lists them; each can be written and run. `transferapp.recipes.export` compares an export with the bundle before it
keeps it. In all of them preprocessing and temperature are part of the network: uint8 pixels 0-255 in, probabilities out.
"""
