//! Medians, and how far they can be trusted.

/// A median, and the interval that holds the true one in at least 95 of 100 cases, whatever the
/// values are distributed like: two of the values themselves (the sign test). With fewer than six
/// values that cannot be said, and it is all of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Median {
    /// The median.
    pub value: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
}

impl Median {
    /// Of some values; `None` when there are none, or one of them is no number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values)?;
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        let outside = outside(sorted.len());
        Some(Self {
            value: f64::midpoint(lower, upper),
            low: sorted[outside],
            high: sorted[sorted.len() - 1 - outside],
        })
    }

    /// Of the ratios of one side to another, slice by slice.
    #[must_use]
    pub fn of_ratios(side: &[f64], baseline: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = side.iter().zip(baseline).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// The value that so many of a hundred do not exceed, with the least and the greatest.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> Option<Median> {
    let sorted = sorted(values)?;
    let rank = (sorted.len() * percent).div_ceil(100);
    Some(Median {
        value: sorted[rank.saturating_sub(1).min(sorted.len() - 1)],
        low: sorted[0],
        high: sorted[sorted.len() - 1],
    })
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// How many values lie outside the interval at each end: one less than the least number of heads that
/// shows, or fewer, in more than 2.5 of 100 throws of `count` fair coins.
fn outside(count: usize) -> usize {
    let mut probability = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut sum = probability;
    let mut heads = 0;
    while sum <= 0.025 {
        heads += 1;
        #[expect(clippy::cast_precision_loss, reason = "counts of slices")]
        let factor = (count + 1 - heads) as f64 / heads as f64;
        probability *= factor;
        sum += probability;
    }
    heads.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(to: u32) -> Vec<f64> {
        (1..=to).map(f64::from).collect()
    }

    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        // Ranks as in any table of it.
        for (count, low, high) in [(6, 1., 6.), (9, 2., 8.), (31, 10., 22.), (61, 23., 39.)] {
            let median = Median::of(&counted(count)).unwrap();
            assert_eq!((median.low, median.high), (low, high), "of {count}");
        }
        let of_five = Median::of(&counted(5)).unwrap();
        assert_eq!((of_five.low, of_five.high), (1., 5.));
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let all = |value, low, high| Some(Median { value, low, high });
        assert_eq!(Median::of(&[3., 1., 2.]), all(2., 1., 3.));
        assert_eq!(Median::of(&[4., 1., 3., 2.]), all(2.5, 1., 4.));
        assert_eq!(Median::of(&[7.]), all(7., 7., 7.));
    }

    #[test]
    fn slices_are_compared_with_their_own_baseline() {
        // The machine became half as fast: no side did.
        let median = Median::of_ratios(&[90., 45., 90.], &[100., 50., 100.]).unwrap();
        assert_eq!((median.value, median.low, median.high), (0.9, 0.9, 0.9));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Median::of(&[]), None);
        assert_eq!(Median::of_ratios(&[1.], &[0.]), None);
        assert_eq!(percentile(&[f64::NAN], 99), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = counted(200);
        let all = |value, low, high| Some(Median { value, low, high });
        assert_eq!(percentile(&values, 99), all(198., 1., 200.));
        assert_eq!(percentile(&values, 50), all(100., 1., 200.));
        assert_eq!(percentile(&[5.], 99), all(5., 5., 5.));
    }
}
