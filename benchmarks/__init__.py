"""Programs that measure speed, memory and false verdicts. With this file the folder comes before packages of its name."""
