//! Packets a second against the number of flows, as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::forward::Curve;

/// Both axes begin at the smallest round number that shows everything; the one of flows is logarithmic.
pub fn write(path: &Path, curves: &[Curve]) -> Result<()> {
    draw(path, curves).map_err(|error| anyhow!("{error}")).with_context(|| path.display().to_string())
}

fn draw(path: &Path, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let flows = points().map(|(flows, _)| *flows).max().unwrap_or(1).max(2);
    let most = points().map(|(_, rate)| rate / 1e6).fold(0.1, f64::max);
    let area = SVGBackend::new(path, (900, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .caption("Packets forwarded by one core, by number of flows", ("sans-serif", 20))
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((1u32..flows).log_scale().base(4.0), 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("flows, one at random for each packet")
        .y_desc("million packets/s")
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (nth, curve) in curves.iter().enumerate() {
        let color = Palette99::pick(nth).to_rgba();
        let line = curve.points.iter().map(|(flows, rate)| (*flows, rate / 1e6));
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)).point_size(4))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    area.present()?;
    Ok(())
}
