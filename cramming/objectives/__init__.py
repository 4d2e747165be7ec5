"""Objectives: what a batch of pretraining is and how a loss comes of it. Not when they are asked (train)."""
