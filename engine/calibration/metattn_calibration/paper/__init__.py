"""The paper's own setting (arXiv 2605.28384), trained from scratch: a character model whose tokens are routed softly."""
