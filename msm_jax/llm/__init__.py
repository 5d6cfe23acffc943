"""Language models that are asked, by corpora and by judges: requests, paid replies, budget, and who answers."""
