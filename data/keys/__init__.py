"""Keys of the host: their second moment over a text, counted once and cached, and what whitens them."""
