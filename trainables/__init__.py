"""Models, data and the loop that trains one trial. Import the submodule you need: this file stays light."""
