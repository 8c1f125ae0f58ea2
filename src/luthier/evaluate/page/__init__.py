"""The pieces of the report: words, pictures, sections, style; `luthier.evaluate.report` joins them."""
