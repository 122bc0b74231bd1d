"""One linear map on one axis of a tensor: layouts, maps, and what applies them."""
