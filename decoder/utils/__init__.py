"""What every room may use: errors in one line, files whole or not at all, checked JSON, the terminal. Nothing here needs torch."""
