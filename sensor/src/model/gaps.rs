//! Which columns make an answer that is not a finite number: missing, or far beyond the training's range.
//!
//! Such a flow has no score and passes, so a model that has gaps can be evaded by whoever makes a value missing or
//! huge. Method: from a row with a finite answer, each column in turn is taken away, or set to a number that no
//! training saw, and all variants are scored. Called by `sensor model check`, by the check of the plainest flows, and
//! by `sensor replay`.

use anyhow::Result;
use sensor_common::features::Presence;
use serde::{Deserialize, Serialize};

use super::{Golden, Model};

/// Beyond what any feature is in a real flow, and far from the end of 32-bit floats.
const FAR: f32 = 1e15;
/// Columns that are named; the rest is counted.
const NAMED: usize = 8;

/// The columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gaps {
    /// Without which there is no finite answer, in the order of the columns. Only those that can be missing in a flow.
    pub missing: Vec<String>,
    /// Whose values far beyond the training's range give no finite answer.
    pub far: Vec<String>,
}

/// Looks for gaps, from the golden row with the fewest missing values that has a finite answer.
///
/// # Errors
/// If the model cannot be run.
pub fn gaps(model: &mut Model) -> Result<Gaps> {
    let Some(base) = base(model)? else { return Ok(Gaps::default()) };
    let width = base.len();
    let mut finite = Vec::with_capacity(3 * width);
    let fill = |number: usize, values: &mut [f32]| {
        values.copy_from_slice(&base);
        values[number % width] = [f32::NAN, FAR, -FAR][number / width];
    };
    model.network.run(3 * width, fill, |_, output| finite.push(output.iter().all(|value| value.is_finite())))?;
    let mut gaps = Gaps::default();
    for (number, feature) in model.features.iter().enumerate() {
        if !finite[number] && feature.presence != Presence::Always {
            gaps.missing.push(feature.name.to_owned());
        }
        if !finite[width + number] || !finite[2 * width + number] {
            gaps.far.push(feature.name.to_owned());
        }
    }
    Ok(gaps)
}

fn base(model: &mut Model) -> Result<Option<Vec<f32>>> {
    let mut rows: Vec<Vec<f32>> = model.golden.iter().map(|Golden { input, .. }| input.clone()).collect();
    rows.sort_by_key(|row| row.iter().filter(|value| value.is_nan()).count());
    let mut finite = Vec::with_capacity(rows.len());
    let fill = |row: usize, values: &mut [f32]| values.copy_from_slice(&rows[row]);
    model.network.run(rows.len(), fill, |_, output| finite.push(output.iter().all(|value| value.is_finite())))?;
    let found = finite.iter().position(|finite| *finite);
    Ok(found.map(|place| rows.swap_remove(place)))
}

/// Some names of a list, and how many more there are.
pub fn names(list: &[String]) -> String {
    let more = list.len().saturating_sub(NAMED);
    let text = list[..list.len() - more].join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let list: Vec<String> = (0..10).map(|number| format!("f{number}")).collect();
        assert_eq!(names(&list[..2]), "f0, f1");
        assert_eq!(names(&list), "f0, f1, f2, f3, f4, f5, f6, f7 and 2 more");
    }
}
