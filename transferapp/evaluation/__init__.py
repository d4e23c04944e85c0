"""How good is it, how sure is it, and how is that shown to people."""
