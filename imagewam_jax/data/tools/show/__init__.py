"""A page to look at datasets: `page` puts it together, `plots` draws."""

from imagewam_jax.data.tools.show.page import write_data_page

__all__ = ["write_data_page"]
