"""What the run scripts' pages are made of: pictures, plots and HTML that opens offline."""
