"""Reports for people: HTML pages made from a bundle's manifest, an audit or a list of labels, and their wording."""
