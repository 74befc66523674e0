"""How good an answer is: metrics, intervals, and the page that shows them."""
