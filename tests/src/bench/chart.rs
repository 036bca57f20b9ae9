//! The ratios as a picture.

use std::{cmp::Ordering, path::Path};

use anyhow::{Context as _, anyhow, ensure};
use plotters::{
    prelude::{
        ChartBuilder, Circle, IntoDrawingArea as _, IntoLogRange as _, IntoSegmentedCoord as _,
        PathElement, RED, SVGBackend, SegmentValue, WHITE,
    },
    style::{BLACK, Color as _, RGBColor},
};

use super::{Metric, Target};

/// Height of a row, and width of the whole, in pixels.
const ROW: usize = 18;
const WIDTH: u32 = 960;

/// What stands around the rows.
const FRAME: usize = 80;

/// Between these ratios something can be seen.
const RANGE: (f64, f64) = (0.4, 2.5);

/// Draws a row for each ratio: the interval, the median on it, and a mark where it should be.
/// Ratios that are far off are drawn at the edge.
///
/// # Errors
/// When there is no ratio, or the file cannot be written.
pub fn draw(metrics: &[Metric], file: &Path) -> anyhow::Result<()> {
    let ratios: Vec<&Metric> = metrics.iter().filter(|of| of.unit == "ratio").collect();
    ensure!(!ratios.is_empty(), "there is no ratio to draw");
    let height = u32::try_from(ratios.len() * ROW + FRAME)?;
    draw_rows(&ratios, file, height)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("cannot draw {}", file.display()))
}

fn draw_rows(
    ratios: &[&Metric],
    file: &Path,
    height: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let (least, most) = RANGE;
    // Counted from below; the first is to be on top.
    let rows = 0..ratios.len() - 1;
    let row = |number: usize| ratios.len() - 1 - number;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(360)
        .build_cartesian_2d((least..most).log_scale(), rows.into_segmented())?;
    let name = |value: &SegmentValue<usize>| match value {
        SegmentValue::CenterOf(number) => ratios
            .get(row(*number))
            .map_or_else(String::new, |of| of.name.clone()),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(ratios.len() + 1)
        .y_label_formatter(&name)
        .x_labels(12)
        .x_label_formatter(&|ratio| format!("{ratio:.2}"))
        .x_desc("ratio")
        .draw()?;
    for (number, metric) in ratios.iter().enumerate() {
        let number = row(number);
        let at = |ratio: f64| (ratio.clamp(least, most), SegmentValue::CenterOf(number));
        let color = color(metric);
        let line = vec![at(metric.low), at(metric.high)];
        chart.draw_series([PathElement::new(line, color.stroke_width(3))])?;
        chart.draw_series([Circle::new(at(metric.value), 4, color.filled())])?;
        if let Some(Target::AtLeast(wanted) | Target::AtMost(wanted)) = metric.target {
            let wanted = wanted.clamp(least, most);
            let mark = vec![
                (wanted, SegmentValue::Exact(number)),
                (wanted, top(number, ratios.len())),
            ];
            chart.draw_series([PathElement::new(mark, BLACK.stroke_width(1))])?;
        }
    }
    area.present()?;
    Ok(())
}

/// Where the row above begins.
fn top(number: usize, rows: usize) -> SegmentValue<usize> {
    match (number + 1).cmp(&rows) {
        Ordering::Less => SegmentValue::Exact(number + 1),
        Ordering::Equal | Ordering::Greater => SegmentValue::Last,
    }
}

fn color(metric: &Metric) -> RGBColor {
    match metric.meets {
        Some(true) => RGBColor(0, 140, 60),
        Some(false) => RED,
        None => RGBColor(120, 120, 120),
    }
}
