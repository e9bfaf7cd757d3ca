"""Models, data and the loop that trains one trial. Import the submodule that you need: this file imports nothing."""
