"""The solver of multinomial logistic regression along a path of C, for several training sets at once."""
