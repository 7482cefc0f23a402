"""The embedded default: a table of real facts and the recipe of a small language model that knows them."""
