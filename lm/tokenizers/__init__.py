"""How text becomes ids, and ids become text: tokenizers of our own, and those of imported folders."""
