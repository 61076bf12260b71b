//! The registry holds what callers rely on.

use super::*;

#[test]
fn every_reason_survives_the_wire_with_its_details() {
    for reason in Reason::ALL {
        let error = ApiError::field(*reason, "size_bytes", "must not be 0")
            .with("leader", "2")
            .retry_after(Duration::from_millis(250))
            .quota("zone a", "no node has 3 GiB");
        let status = error.to_status();
        assert_eq!(status.code(), reason.code());
        assert_eq!(ApiError::from_status(&status), Some(error));
    }
}

#[test]
fn every_reason_is_upper_snake_unique_and_has_an_exit_code() {
    for (at, reason) in Reason::ALL.iter().enumerate() {
        let text = reason.text();
        assert!(text.len() <= 63);
        assert!(text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{text}");
        assert!(Reason::ALL.iter().skip(at + 1).all(|other| other.text() != text), "{text} twice");
        assert_eq!(Reason::from_text(text), Some(*reason));
        assert_ne!(reason.exit_code(), 0);
    }
}

#[test]
fn a_status_of_somebody_else_is_no_error_of_ours() {
    assert_eq!(ApiError::from_status(&Status::unavailable("connection reset")), None);
    let foreign = ErrorDetails::with_error_info("NOT_LEADER", "example.com", HashMap::new());
    let status = Status::with_error_details(Code::Unavailable, "other", foreign);
    assert_eq!(ApiError::from_status(&status), None);
}
