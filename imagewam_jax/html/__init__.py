"""Self-contained HTML pages: `page` puts sections together, `pictures` makes what is in them."""
