"""What `python -m data.tracing` measured, beside what was published: as Markdown and as a page."""
