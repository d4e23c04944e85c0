"""Search for the settings of a head: randomly, on a logarithmic scale, coarse and then fine, on cached features."""
