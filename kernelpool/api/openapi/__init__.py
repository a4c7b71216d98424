"""The OpenAPI document, and the page that shows it. A surface describes itself in a `Surface`; a test finds gaps."""
