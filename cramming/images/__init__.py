"""The first paper's experiment on images of digits (arXiv 2308.14711, Table 1). Not language."""
