"""Small runs, texts and models that several tests share."""
