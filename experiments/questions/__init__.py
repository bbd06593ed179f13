"""The article's questions, a module each; duel and ladder hold what two of them share."""
