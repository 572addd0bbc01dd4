// SPDX-License-Identifier: Apache-2.0

package cni

import "errors"

// What errors.Is finds in what is returned. The texts are go-cni's, since
// kubelet and people look for them.
var (
	ErrCNINotInitialized = errors.New("cni plugin not initialized")
	ErrInvalidConfig     = errors.New("invalid cni config")
	ErrInvalidResult     = errors.New("invalid result")
)
