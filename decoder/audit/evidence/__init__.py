"""Evidence of an edit: what both kinds of it say, how often nulls say as much, and what taking the edit out does."""
