"""A policy and what it started from: judgements as it reads them, its reference, its figures, how far it has gone."""
