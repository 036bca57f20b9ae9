//! What others take away from us is noticed, and put back: links that were detached, pins that
//! were removed.

use std::path::PathBuf;

use anyhow::Result;
use sidecar_common::keys::WorkloadId;

use super::{Attachment, Binding, Dataplane, attachment};

impl Dataplane {
    /// The links of a workload that are not there, or not attached to where it is: by the names of
    /// their pins. Of a workload that is not attached there are none.
    #[must_use]
    pub fn broken_links(&self, workload: WorkloadId) -> Vec<String> {
        self.attachments
            .get(&workload)
            .map(Attachment::broken_links)
            .unwrap_or_default()
    }

    /// Attaches what is not attached any more. What is stays as it is, and so does what the workload
    /// follows.
    ///
    /// # Errors
    /// If the workload is not attached, or the kernel refuses an attachment; what was attached
    /// before is as it was then.
    pub fn heal(&mut self, workload: WorkloadId, binding: &Binding<'_>) -> Result<()> {
        self.restore_pins()?;
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.attach_again(&self.objects, binding)?;
        attachment.publish_identity(&self.maps)
    }

    /// Makes the pins of maps again that were removed, and the directories they were in. Returns
    /// which those are.
    ///
    /// # Errors
    /// If one cannot be made, something else is in its place, or another agent uses the directory.
    pub fn restore_pins(&mut self) -> Result<Vec<PathBuf>> {
        self.lock.renew()?;
        self.objects.restore_pins()
    }
}
