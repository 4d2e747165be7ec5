"""What measures the layers, the models and the machine. Not shipped: neither fff nor cramming imports it."""
