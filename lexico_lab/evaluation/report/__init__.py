"""The report as one page: jinja2 fills the template, matplotlib draws the plots."""
