"""What a run shows: the table, the plots and the HTML page, all from the lines the run left in its folder."""
