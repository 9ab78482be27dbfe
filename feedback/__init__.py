"""What users say about answers: exchanges, votes, corrections, their review, and frozen datasets."""
