//! Slices: every side does the same for a short time, one after the other, again and again, so that
//! what happens to the machine happens to all of them.

/// One measurement of one side.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations a second.
    pub rate: f64,
    /// Time of CPUs for an operation, in ns: of those whose use is counted.
    pub cpu: f64,
    /// Which part of the time the CPU of both ends was busy with them; 0 where that is not counted.
    pub ends: f64,
}

/// The samples of one side, by slice.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// [`Sample::rate`].
    pub rates: Vec<f64>,
    /// [`Sample::cpu`].
    pub cpu: Vec<f64>,
    /// [`Sample::ends`].
    pub ends: Vec<f64>,
}

impl Samples {
    /// Adds the one of the next slice.
    pub fn push(&mut self, sample: Sample) {
        self.rates.push(sample.rate);
        self.cpu.push(sample.cpu);
        self.ends.push(sample.ends);
    }
}

/// Measures all sides in so many slices; `measure` is given the number of a side. The order is
/// turned round from slice to slice: what comes first is not always the same. The slice before the
/// first is thrown away, as caches are cold and ports unused.
///
/// # Errors
/// When a measurement fails.
pub fn measure(
    sides: usize,
    slices: usize,
    mut measure: impl FnMut(usize) -> anyhow::Result<Sample>,
) -> anyhow::Result<Vec<Samples>> {
    let mut all = vec![Samples::default(); sides];
    for side in 0..sides {
        measure(side)?;
    }
    for slice in 0..slices {
        for side in order(sides, slice) {
            all[side].push(measure(side)?);
        }
    }
    Ok(all)
}

/// The order of sides in a slice. Each second one is the one before turned round; in between another
/// begins.
fn order(sides: usize, slice: usize) -> Vec<usize> {
    let first = slice / 2;
    let mut order: Vec<usize> = (0..sides).map(|side| (side + first) % sides).collect();
    if !slice.is_multiple_of(2) {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_alternates_and_everybody_begins() {
        assert_eq!(order(2, 0), [0, 1]);
        assert_eq!(order(2, 1), [1, 0]);
        let firsts: Vec<usize> = (0..6).map(|slice| order(3, slice)[0]).collect();
        assert_eq!(firsts, [0, 2, 1, 0, 2, 1]);
    }

    #[test]
    fn each_side_has_a_sample_of_each_slice() {
        let mut calls = 0_u32;
        let all = measure(3, 5, |side| {
            calls += 1;
            let rate = f64::from(u32::try_from(side)?);
            Ok(Sample {
                rate,
                cpu: 1.,
                ends: 0.,
            })
        })
        .unwrap();
        assert_eq!(calls, 3 + 15);
        for (side, samples) in (0_u32..).zip(&all) {
            assert_eq!(samples.rates, [f64::from(side); 5]);
        }
    }
}
