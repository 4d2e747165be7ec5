"""Dense to tree by distillation: any model's feedforward blocks become trees or fewer neurons, and are judged."""
