"""The page of all results: `tables` turns JSON into Markdown, `figures` into pictures."""
