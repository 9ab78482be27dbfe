"""From frozen datasets to a judged adapter on stage."""
