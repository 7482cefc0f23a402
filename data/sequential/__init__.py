"""Facts planted one after the other in one host, and what that does to it: `python -m data.sequential`."""
