//! Suggestions for names that nothing has.

/// What to say of a name that nothing has: the nearest one there is, or all of them.
pub(super) fn unknown<'n>(kind: &str, name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    match nearest {
        None => format!("there is no {kind} `{name}`: none is configured"),
        Some(nearest) if distance(name, nearest) <= 2 => {
            format!("there is no {kind} `{name}`: did you mean `{nearest}`?")
        }
        Some(_) => format!("there is no {kind} `{name}`: there are {}", known.join(", ")),
    }
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let value = (corner + usize::from(x != y)).min(left + 1).min(*cell + 1);
            corner = *cell;
            *cell = value;
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        for (a, b, steps) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
        let known = || ["engineers", "staff"].into_iter();
        assert!(unknown("policy", "enginers", known()).contains("did you mean `engineers`?"));
        assert!(unknown("policy", "xyz", known()).contains("there are engineers, staff"));
        assert!(unknown("policy", "xyz", std::iter::empty()).contains("none is configured"));
    }
}
